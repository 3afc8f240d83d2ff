"""Pretrain a small BERT by masked-language modelling on real English text.

    python examples/pretrain_bert.py                                  MAdam, Python's documentation
    python examples/pretrain_bert.py --optimizer lamadam --option "beta2_range=(0.5, 0.999)"
    python examples/pretrain_bert.py --optimizer torch.optim.AdamW    any other optimizer
    python examples/pretrain_bert.py --text book.txt notes/           text of your own
    python examples/pretrain_bert.py --resume                         go on after an interruption

The defaults follow the MaxVA paper's setting for BERT: MAdam (its Algorithm 1), weight decay 0.1,
gradients clipped to norm 1, linear warm-up, then linear decay. They take a few minutes on two CPU
cores and need no download.

The output folder receives checkpoints, a picture of the losses (loss.png) and the figures of the
run (results.json), which the terminal shows as a table. The dashed line in the picture is the
unigram line, the held-out loss of guessing every masked token by word frequency alone: what a
model gains below it, it has learned from context.
"""

import sys

from pretrain.options import Refusal, parse_options


def main() -> int:
    options = parse_options(__doc__)
    try:
        # Imported late: --help and mistyped options need not wait the seconds that torch takes.
        from pretrain.report import write_report
        from pretrain.training import pretrain

        write_report(options.output, pretrain(options))
    except Refusal as refusal:
        return complain(f"error: {refusal}", 2)
    except KeyboardInterrupt:
        return complain(
            "interrupted; --resume goes on from the last checkpoint, if there is one", 130
        )
    return 0


def complain(message: str, status: int) -> int:
    print(f"pretrain_bert.py: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
