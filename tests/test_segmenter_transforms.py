"""Models made from segmenters: folded, cast, cloned, optimized; their costs and signals."""

import keras
import numpy as np
import pytest
from support import random_images, small_segmenter

from keras_resnet import complexity, fold_batch_norm, load_model, optimize_for_inference
from keras_resnet.analysis import grad_cam, layer_costs, layer_responses, total_cost
from keras_resnet.models.cloning import clone
from keras_resnet.models.transforms import cast_model, with_input_size

HEADS = ("fcn", "deeplabv3", "deeplabv3plus")
X = random_images(2, 61, 90, 3)


@pytest.mark.parametrize("head", HEADS)
def test_copies_compute_the_same(head):
    model = small_segmenter(head)
    expected = model.predict(X, verbose=0)
    folded = fold_batch_norm(model)
    assert folded.info["unfolded"] == [] and type(folded) is type(model) and folded.spec == model.spec
    for copy in (folded, clone(model), cast_model(model, "float32"), optimize_for_inference(model, "float32")):
        np.testing.assert_allclose(copy.predict(X, verbose=0), expected, rtol=1e-3, atol=1e-3)
    fixed = with_input_size(model, 61)
    assert fixed.output_shape == (None, 61, 61, 5)
    np.testing.assert_allclose(fixed.predict(X[:, :, :61]), model.predict(X[:, :, :61]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_fewer_bits_give_nearly_the_same_classes(precision, tmp_path):
    model = small_segmenter("deeplabv3")
    expected = model.predict(X, verbose=0)
    cast = cast_model(model, precision)
    assert cast.get_layer("logits").dtype_policy.name == "float32"
    assert cast.get_layer("aspp_branch1_conv").variable_dtype == cast.get_layer("aux_hidden_conv").variable_dtype
    found = cast.predict(X, verbose=0)
    assert found.dtype == np.float32 and (found.argmax(-1) == expected.argmax(-1)).mean() > 0.95
    cast.save(tmp_path / "cast.keras")
    np.testing.assert_array_equal(load_model(tmp_path / "cast.keras").predict(X, verbose=0), found)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends have one kind of convolution")
def test_dilated_convolutions_of_casts_are_tensorflows():
    import tensorflow as tf

    model = cast_model(small_segmenter("deeplabv3"), "float32")
    graph = tf.function(model).get_concrete_function(tf.TensorSpec((None, None, None, 3))).graph
    operations = [operation for operation in graph.get_operations() if operation.type == "Conv2D"]
    assert max(max(operation.get_attr("dilations")) for operation in operations) == 8
    assert "SpaceToBatchND" not in {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize("head", ["fcn", "deeplabv3", "deeplabv3plus"])
def test_costs_of_the_layers_add_up_to_those_of_the_spec(head):
    """Multiply-adds are those of inference, without the auxiliary head, whose parameters count."""
    model = small_segmenter(head)
    costs = layer_costs(model, (64, 81, 3))
    assert total_cost(costs) == complexity(model.spec, input_shape=(64, 81, 3))
    auxiliary = [cost for cost in costs if cost.name.startswith("aux_")]
    assert sum(cost.parameters for cost in auxiliary) > 0 == sum(cost.multiply_adds for cost in auxiliary)
    (last,) = (cost for cost in costs if cost.name.endswith("_logits") and cost not in auxiliary)
    height, width, classes = last.output_shape
    width_before = last.parameters // classes - 1
    assert last.multiply_adds == height * width * width_before * classes


def test_segmenters_have_signals_but_no_classifier():
    model, x = small_segmenter("deeplabv3plus"), X
    assert "decoder_hidden1_conv" in layer_responses(model, x)
    with pytest.raises(ValueError, match="`model` should be a classifier"):
        grad_cam(model, x)
