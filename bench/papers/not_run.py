"""What of the papers is not run here, and why."""

from __future__ import annotations

from .experiment import Table

NUMBER = 12
TITLE = "What is not run here, and why"
DOWNLOAD = "data to download, and days of a GPU"
EXPERIMENTS = Table(
    ["experiment", "papers", "why not", "what is here instead"],
    [
        ["Pretraining of BERT and RoBERTa at the papers' sizes",
         "MaxVA 5.4, LaProp 5.4, MADGRAD 7.5", DOWNLOAD,
         "a small BERT: 10; `examples/pretrain_bert.py` accepts every class"],
        ["CIFAR-10, CIFAR-100", "all five", DOWNLOAD, "digits: 5, 6, 8, 9"],
        ["ImageNet", "MaxVA, AvaGrad, AdaMomentum, MADGRAD", DOWNLOAD, "digits: 8, 9"],
        ["Translation, IWSLT and WMT", "MaxVA, LaProp, AdaMomentum, MADGRAD", DOWNLOAD,
         "a small masked language model: 9, 10, 11"],
        ["GLUE, SQuAD", "MaxVA", "pretrained weights to download, and days of a GPU", ""],
        ["Penn Treebank", "AvaGrad, AdaMomentum", "a corpus that is not free to share", ""],
        ["GANs", "AvaGrad, AdaMomentum",
         "days of a GPU, and a score that needs a large pretrained network", ""],
        ["Style transfer", "LaProp", "a large pretrained network", ""],
        ["Atari games", "LaProp", "a simulator, and weeks of a GPU", ""],
        ["fastMRI", "MADGRAD", "data under an agreement of its own, and days of a GPU", ""],
    ],
    words=True,
)  # fmt: skip
LEFT_OUT = """\
The second table has options of the authors' code that these classes lack; AvaGrad's has none.
AdaMomentum's code is that of AdaM3, the name under which it was published later. In what they
share, the released forms have been run beside the authors' classes in float64: they agree up to
rounding, except where the algorithms' pages say otherwise."""
OPTIONS = Table(
    ["left out", "of", "what it is"],
    [
        ["`nesterov`", "MaxVA", "the present gradient enters the average twice"],
        ["`moment_warmup`", "MaxVA", "first steps that change only the second moment"],
        ["`share_beta`", "MaxVA", "the step is along `w u`, the weighted sum of the same betas"],
        ["`lamb`", "MaxVA", "LAMB's ratio of norms, on MAdam's update; `LAMB` has it on Adam's"],
        ["the file for fairseq", "MaxVA",
         "MAdam with `delta` in `1 - beta`: vanishing gradients get `hi`, not `lo`"],
        ["the file for fairseq", "LaProp",
         "decay is multiplied by `lr`, and applied before the step; `eps` is added before the "
         "correction by bc2, `1 - beta2^t`; with `amsgrad` and `centered`, first steps without a "
         "root"],
        ["`rectify`", "AdaMomentum",
         "RAdam's factor on each step, and first steps along the momentum alone; on by default"],
        ["`fixed_decay`", "AdaMomentum", "decay is not multiplied by `lr`"],
        ["`MirrorMADGRAD`", "MADGRAD",
         "a class of its own: steps from the last point, not the first, and squares that fade"],
    ],
    words=True,
)  # fmt: skip
