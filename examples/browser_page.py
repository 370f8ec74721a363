"""A page in the browser: drop an image on it, and see the five most probable classes and what speaks for the first.

    pip install gradio
    python examples/browser_page.py [--model resnet20] [--weights cifar10] [--port 7860]

The model is a .keras file or the name of a network, the weights a tag or a file, as for `keras-resnet predict`. The
page works without the internet, and is for this machine alone; `--host 0.0.0.0` opens it to the network.
"""

import argparse
import base64
import io
import tempfile
from html import escape
from pathlib import Path

import gradio
import numpy as np

import keras_resnet
from keras_resnet import analysis
from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.data.image_files import load_image
from keras_resnet.prediction import classify

LARGEST = "20 MB"
"""Of an image's file."""
KEPT = 600
"""Seconds for which the server keeps an image; as often it looks for older ones."""
STYLE = """
.gradio-container {width: 100%; max-width: 960px !important; margin: 0 auto !important}
.gradio-container main {width: 100% !important}
#answer .prose {display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-end}
#answer figure {flex: 1 1 260px; margin: 0; text-align: center}
#answer img {display: block; width: 100%; max-height: 400px; object-fit: contain; margin: 0; background: white}
#answer figure:first-child img {padding: 3.2%} /* the margin that the other has */
#answer table {flex: 1 1 100%; margin: 0}
#answer table, #answer tr {border: 0}
#answer td {padding: 8px; border: 0; border-bottom: 1px solid var(--border-color-primary)}
#answer td:nth-child(2) {width: 60%}
#answer td:last-child {text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums}
#answer td div {height: 8px; border-radius: 4px; background: var(--primary-500)}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", help="a network's name, or a .keras file")
    parser.add_argument("--weights", default="cifar10", help="a tag or a weights file; a .keras file has its own")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default=7860, type=int)
    given = parser.parse_args()
    if given.model.endswith(".keras"):
        network = keras_resnet.load_model(given.model)
    else:
        network = keras_resnet.create(given.model, weights=given.weights)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"])  # fonts of the system, not of the internet
    page(network).launch(
        server_name=given.host, server_port=given.port, max_file_size=LARGEST, footer_links=[], theme=theme, css=STYLE
    )


def page(network):
    """The page for a network whose preprocessing is known."""
    keras_resnet.preprocessing(network)  # raises ValueError where it is not
    with gradio.Blocks(title=network.name, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gradio.Markdown(f"# What does {network.name} see?")
        dropped = gradio.File(type="binary", label=f"Image, {LARGEST} at most", height=160)
        answer = gradio.HTML(elem_id="answer")
        dropped.change(lambda file: look(network, file), dropped, answer)
    return blocks


def look(network, file):
    """HTML for the bytes of an image file: classes with their probabilities and Grad-CAM, or what is wrong with it."""
    if file is None:  # taken away
        return ""
    prepare = keras_resnet.preprocessing(network)
    try:
        image = load_image(file, prepare.channels)
        (classes,) = classify(network, [image], top=5)
        (heat,) = analysis.grad_cam(network, to_data_format(network, prepare(image)))
    except (ValueError, OSError) as error:
        return f"<p>{escape(str(error))}</p>"
    part = seen(prepare, image)
    part.thumbnail((600, 600))  # more would not be shown
    speaks = figure(heat_map(part, heat), f"What speaks for {classes[0][1]}")
    return figure(png(part), "What the network sees") + speaks + table(classes)


def table(classes):
    """HTML: a row with a bar for each class."""
    rows = (
        f'<tr><td>{escape(name)}</td><td><div style="width: {share:.1%}"></div></td><td>{100 * share:.1f} %</td></tr>'
        for _, name, share in classes
    )
    return f"<table>{''.join(rows)}</table>"


def seen(prepare, image):
    """The part of a PIL image that the network sees, finer than it sees it: all of it, or a square in the middle."""
    if prepare.resize is None:
        return image
    side = max(1, round(min(image.size) * prepare.size / prepare.resize))
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def png(image):
    """A PIL image as a file's bytes."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def heat_map(image, heat):
    """The same, with a heat map (h, w) over it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "heat.png"
        analysis.plot_grad_cam([np.asarray(image)], heat[None], path)
        return path.read_bytes()


def figure(file, caption):
    """HTML: a PNG file's bytes with words below."""
    words, data = escape(caption), base64.b64encode(file).decode()
    return f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'


if __name__ == "__main__":
    main()
