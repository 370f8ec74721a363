"""The words of timm and torchvision for what this package calls otherwise: errors name the right one."""

MODEL_ARGUMENTS = {
    # timm.create_model
    "pretrained": "`weights`, a tag of `list_weights(name)` or a path; None is random",
    "checkpoint_path": "`weights`, a path",
    "num_classes": "`classes`",
    "in_chans": "`input_shape=(height, width, channels)`",
    "img_size": "`input_shape=(height, width, channels)`",
    "global_pool": "`pooling` with `include_top=False`",
    "drop_rate": "`dropout`",
    "drop_path_rate": "`drop_path`",
    "zero_init_last": "`zero_init_residual`",
    "features_only": "`feature_extractor(name, endpoints=...)`",
    "out_indices": "`feature_extractor(name, endpoints=('stage1', 'stage2', ...))`",
    # torchvision.models
    "progress": "nothing: downloads show their progress",
    "replace_stride_with_dilation": "`output_stride=16` or 8",
    "norm_layer": "`bn_epsilon` and `bn_momentum`; batch norm is fixed",
    "width_per_group": "`group_width`",
}
"""Argument of timm's or torchvision's models -> what to write here."""

DETECTOR_ARGUMENTS = {
    # torchvision.models.detection
    "pretrained": "`weights`, a tag of `list_weights(name)` or a path; None is random",
    "num_classes": "`classes`, which counts the background, too",
    "weights_backbone": "`backbone_weights`",
    "pretrained_backbone": "`backbone_weights`",
    "trainable_backbone_layers": "`trainable_stages`, an argument of `train`",
    "progress": "nothing: downloads show their progress",
    "image_mean": "`mode`, a name or a Normalization",
    "image_std": "`mode`, a name or a Normalization",
    "size_divisible": "`divisor`",
    "norm_layer": "`neck_norm` and `head_norm`",
    "returned_layers": "`levels`",
    "extra_blocks": "`extra_levels`",
    "anchor_generator": "`anchor_sizes` and `anchor_ratios`",
    "rpn_anchor_generator": "`anchor_sizes` and `anchor_ratios`",
    "rpn_pre_nms_top_n_test": "`candidates`",
    "topk_candidates": "`candidates`",
    "rpn_post_nms_top_n_test": "`proposals`",
    "rpn_nms_thresh": "`proposal_nms_threshold`",
    "box_score_thresh": "`score_threshold`",
    "score_thresh": "`score_threshold`",
    "box_nms_thresh": "`nms_threshold`",
    "nms_thresh": "`nms_threshold`",
    "box_detections_per_img": "`detections`",
    "detections_per_img": "`detections`",
}
"""Argument of torchvision's detectors -> what to write here."""

SEGMENTER_ARGUMENTS = {
    # torchvision.models.segmentation
    "pretrained": "`weights`, a tag of `list_weights(name)` or a path; None is random",
    "num_classes": "`classes`",
    "aux_loss": "`auxiliary`",
    "weights_backbone": "`backbone_weights`",
    "pretrained_backbone": "`backbone_weights`",
    "replace_stride_with_dilation": "`output_stride=16` or 8",
    "atrous_rates": "`rates`",
    "progress": "nothing: downloads show their progress",
    # segmentation_models_pytorch, KerasHub
    "encoder_name": "`backbone`, a name or a ResNetSpec",
    "encoder_weights": "`backbone_weights`",
    "encoder_output_stride": "`output_stride`",
    "decoder_atrous_rates": "`rates`",
    "decoder_channels": "`head_width`",
    "dilation_rates": "`rates`",
    "upsampling_size": "nothing: the logits have the size of the images",
}
"""Argument of segmenters in torchvision and elsewhere -> what to write here."""

RECIPE_FIELDS = {
    # train.py of timm, references/classification/train.py of torchvision
    "lr": "`learning_rate`",
    "opt": "`optimizer`",
    "sched": "`schedule`",
    "lr_scheduler": "`schedule`",
    "decay_milestones": "`milestones`",
    "warmup_epochs": "`warmup`, a share of the run",
    "lr_warmup_epochs": "`warmup`, a share of the run",
    "warmup_lr": "`warmup_rate`",
    "clip_grad": "`clip_norm`",
    "smoothing": "`label_smoothing`",
    "bce_loss": "`loss='binary_cross_entropy'`",
    "mixup_alpha": "`mixup`",
    "cutmix_alpha": "`cutmix`",
    "aa": "`policy`",
    "auto_augment": "`policy`",
    "reprob": "`erasing`",
    "random_erase": "`erasing`",
    "hflip": "`flip`",
    "ra_reps": "`repeats`",
    "aug_repeats": "`repeats`",
    "model_ema_decay": "`ema_decay`",
    "img_size": "`train_size` and `test_size`",
    "train_crop_size": "`train_size`",
    "val_crop_size": "`test_size`",
    "val_resize_size": "`test_resize`",
    "trainable_backbone_layers": "`trainable_stages`",
    "lr_steps": "`milestones`, as shares of the run",
    "data_augmentation": "`crop`",
    "pretrained": "`weights`, an argument of `train`",
    "weights_backbone": "`backbone_weights`, an argument of `train`",
    "num_classes": "`dataset`, an argument of `train`: the classes are its own",
    "amp": "`options=RunOptions(precision='bfloat16')`",
    "output": "`workdir`, an argument of `train`",
    "output_dir": "`workdir`, an argument of `train`",
}
"""Option of timm's or torchvision's training scripts -> field of a recipe, or another argument of `train`."""
