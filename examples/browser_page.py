"""A web page that classifies an image: the five most probable classes, and a Grad-CAM of the first.

    pip install gradio
    python examples/browser_page.py [--model resnet20] [--weights cifar10] [--port 7860]
    python examples/browser_page.py --model maskrcnn_resnet50_fpn --weights coco

With a detector it draws the objects in the image: their boxes, names, scores and masks. The model is a .keras file or
the name of a network, the weights a tag or a file, as for `keras-resnet predict`. The page works offline. Only this
machine can open it, unless `--host 0.0.0.0` opens it to the local network.
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
from keras_resnet.detection import is_detector
from keras_resnet.drawing import draw_detections
from keras_resnet.prediction import classify

MAX_FILE_SIZE = "20 MB"
MAX_DRAWING_SIDE = 1200
"""Longer side of the drawing of a detector in pixels."""
KEEP_SECONDS = 600
"""How long the server keeps an uploaded image, and how often it deletes older ones."""
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
    parser.add_argument("--model", default="resnet20", help="name of a network, or a .keras file")
    parser.add_argument("--weights", default="cifar10", help="a tag or a weights file; not used for a .keras file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default=7860, type=int)
    args = parser.parse_args()
    if args.model.endswith(".keras"):
        model = keras_resnet.load_model(args.model)
    else:
        model = keras_resnet.create(args.model, weights=args.weights)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"])  # the default theme downloads its fonts
    options = {"max_file_size": MAX_FILE_SIZE, "footer_links": [], "theme": theme, "css": STYLE}
    page(model).launch(server_name=args.host, server_port=args.port, **options)


def page(model):
    """The web page, as gradio.Blocks, for a model whose preprocessing is known."""
    keras_resnet.preprocessing(model)  # raises ValueError if it is not
    task = "Object detection" if is_detector(model) else "Image classification"
    with gradio.Blocks(title=model.name, analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as blocks:
        gradio.Markdown(f"# {task} with {model.name}")
        file = gradio.File(type="binary", label=f"Image, at most {MAX_FILE_SIZE}", height=160)
        answer = gradio.HTML(elem_id="answer")
        file.change(lambda content: answer_html(model, content), file, answer)
    return blocks


def answer_html(model, content):
    """HTML with the classes or the objects of an image, or with the error if `content` is not an image file."""
    if content is None:  # the image was removed
        return ""
    try:
        return (objects_html if is_detector(model) else classes_html)(model, content)
    except (ValueError, OSError) as error:
        return f"<p>{escape(str(error))}</p>"


def classes_html(model, content):
    """HTML with the most probable classes of an image file, the model's input and the Grad-CAM of the first class."""
    preprocessing = keras_resnet.preprocessing(model)
    image = load_image(content, preprocessing.channels)
    (classes,) = classify(model, [image], top=5)
    (heat_map,) = analysis.grad_cam(model, to_data_format(model, preprocessing(image)))
    crop = input_crop(preprocessing, image)
    crop.thumbnail((600, 600))  # the page shows no more pixels
    grad_cam = figure_html(grad_cam_png(crop, heat_map), f"Grad-CAM of {classes[0][1]}")
    return figure_html(png(crop), "Model input") + grad_cam + table_html((name, share) for _, name, share in classes)


def objects_html(model, content):
    """HTML with a drawing of the objects in an image file, and their names and scores."""
    image = load_image(content)
    (found,) = keras_resnet.detect(image, model)
    drawing = draw_detections(image, found)
    drawing.thumbnail((MAX_DRAWING_SIDE, MAX_DRAWING_SIDE))
    title = f"Objects found: {len(found)}"
    return figure_html(png(drawing), title) + table_html(zip(found.names, found.scores, strict=True))


def table_html(rows):
    """HTML table with the name, a bar and the percentage of each (name, share from 0 to 1)."""
    cells = (
        f'<tr><td>{escape(name)}</td><td><div style="width: {share:.1%}"></div></td><td>{share:.1%}</td></tr>'
        for name, share in rows
    )
    return f"<table>{''.join(cells)}</table>"


def input_crop(preprocessing, image):
    """The part of a PIL image that becomes the model's input, before it is resized: all of it, or the center square."""
    if preprocessing.resize is None:
        return image
    side = max(1, round(min(image.size) * preprocessing.size / preprocessing.resize))
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def png(image):
    """A PIL image as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def grad_cam_png(image, heat_map):
    """The bytes of a PNG file: the image under a heat map, (h, w)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grad_cam.png"
        analysis.plot_grad_cam([np.asarray(image)], heat_map[None], path)
        return path.read_bytes()


def figure_html(content, caption):
    """HTML figure of a PNG file's bytes."""
    text, data = escape(caption), base64.b64encode(content).decode()
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


if __name__ == "__main__":
    main()
