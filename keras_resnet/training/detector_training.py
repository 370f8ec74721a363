"""`training_model`: a model of a detector's layers whose outputs are its losses."""

import keras
from keras import layers

from keras_resnet.architecture.detection_layers import Proposals
from keras_resnet.architecture.detector import Detector
from keras_resnet.training.detection_losses import (
    DenseLosses,
    DetectionLosses,
    MaskLoss,
    ProposalLosses,
    RegionLosses,
    SampledAnchors,
    SampledRegions,
    TrueObjects,
)


def training_model(detector: Detector, losses: DetectionLosses | None = None) -> keras.Model:
    """A model whose outputs are the losses of a detector: training it trains the detector, whose layers it shares.

    >>> import keras_resnet, numpy as np
    >>> from keras_resnet.training.detector_training import mean_loss, training_model
    >>> model = training_model(keras_resnet.create("retinanet_resnet18_fpn", classes=3))
    >>> sorted(model.output)
    ['bbox_regression', 'classification']

    It is compiled with `mean_loss` for each output; the sum of the means is torchvision's loss of the batch.

    Args:
        detector: a detector as `create` or `build` returns it.
        losses: thresholds, numbers of samples and the loss of boxes; None for torchvision's.

    Returns:
        A Functional model. Inputs are a dict: `images` (B, H, W, 3), normalised, NaN where they are padded; `boxes`
        (B, G, 4) in pixels of the padded images; `labels` (B, G) int32, 0 for padding; `keys` (B, 2) int32, the seed
        and the position of the image in the run, from which its random numbers are made; with a mask head `masks`
        (B, G, H, W) uint8. Outputs are a dict of losses (B,) by torchvision's names, without "loss_". Its attribute
        `detector` is the detector.
    """
    losses = losses or DetectionLosses()
    inputs = {
        "images": detector.input,
        "boxes": layers.Input((None, 4), name="boxes"),
        "labels": layers.Input((None,), dtype="int32", name="labels"),
        "keys": layers.Input((2,), dtype="int32", name="keys"),
    }
    if detector.spec.mask_head:
        inputs["masks"] = layers.Input((None, None, None), dtype="uint8", name="masks")
    objects = TrueObjects(name="true_objects")(
        {name: inputs[name] for name in ("boxes", "labels", "masks") if name in inputs}
    )
    build_losses = _dense_losses if detector.spec.box_head == "dense" else _region_losses
    model = keras.Model(inputs, build_losses(detector, losses, objects, inputs["keys"]), name="training")
    object.__setattr__(model, "detector", detector)  # as a plain attribute: its layers are the model's already
    return model


def mean_loss(_, losses):
    """The losses of the images of a batch as a loss function of Keras, which averages them; ignores the targets."""
    return losses


def call_arguments(layer: keras.Layer) -> tuple:
    """The tensors, in their nested structure, with which a layer was called first."""
    return layer._inbound_nodes[0].arguments.args


def _dense_losses(detector, losses, objects, keys):
    """RetinaNet's losses; it has no samples."""
    given = call_arguments(detector.get_layer("detections"))[0]
    layer = DenseLosses(
        **_anchors(detector.spec),
        classes=detector.spec.classes,
        sampling=losses.dense,
        boxes=losses.dense_boxes,
        name="dense_losses",
    )
    found = layer({name: given[name] for name in ("images", "scores", "deltas")} | {"objects": objects})
    return dict(zip(("classification", "bbox_regression"), found, strict=True))


def _anchors(spec):
    return {"anchor_sizes": spec.anchor_sizes, "anchor_ratios": spec.anchor_ratios}


def _region_losses(detector, losses, objects, keys):
    """Losses of the region proposal network, of the box head and of the mask head."""
    given = call_arguments(detector.get_layer("proposals"))[0]
    predicted = {name: given[name] for name in ("objectness", "deltas")}
    anchors = SampledAnchors(**_anchors(detector.spec), sampling=losses.anchors, name="sampled_anchors")(
        {"images": given["images"], "objectness": given["objectness"], "objects": objects, "keys": keys}
    )
    found = ProposalLosses(name="proposal_losses")(predicted | {"samples": anchors})
    outputs = dict(zip(("objectness", "rpn_box_reg"), found, strict=True))
    proposals, count = Proposals(
        **_anchors(detector.spec),
        candidates=losses.candidates,
        proposals=losses.proposals,
        nms_threshold=losses.proposal_nms_threshold,
        name="training_proposals",
    )(given)
    regions = SampledRegions(sampling=losses.regions, name="sampled_regions")(
        {"proposals": proposals, "count": count, "objects": objects, "keys": keys}
    )
    heads = _box_predictions(detector, regions, given["sizes"])
    found = RegionLosses(rows_of_padding=detector.spec.global_context, name="region_losses")(
        heads | {"samples": regions}
    )
    outputs |= dict(zip(("classifier", "box_reg"), found, strict=True))
    if detector.spec.mask_head:
        outputs["mask"] = _mask_loss(detector, losses, regions, objects["masks"])
    return outputs


def _box_predictions(detector, regions, sizes):
    """What the box head predicts of sampled regions: `scores` (R, classes) and `deltas` (R, 4 * classes)."""
    align = detector.get_layer("box_regions")
    maps = call_arguments(align)[0]
    given = call_arguments(detector.get_layer("detections"))[0]
    outputs = {name: given[name] for name in ("scores", "deltas")}
    if not detector.spec.global_context:
        return keras.Model(align.output, outputs, name="box_head")(align(maps, regions["boxes"], regions["count"]))
    context = detector.get_layer("box_context")
    around = detector.get_layer("box_whole_image")(regions["boxes"], sizes)
    features = keras.Model(align.output, context.input[0], name="box_features")(align(maps, around))
    return keras.Model(context.output, outputs, name="box_head")(context(features, around))


def _mask_loss(detector, losses, regions, masks):
    places, align = losses.regions.positives, detector.get_layer("mask_regions")
    maps = call_arguments(align)[0]
    head = keras.Model(align.output, detector.get_layer("mask_logits").output, name="mask_head")
    logits = head(align(maps, regions["boxes"][:, :places], regions["positives"]))
    return MaskLoss(places=places, name="mask_loss")({"logits": logits, "masks": masks, "samples": regions})
