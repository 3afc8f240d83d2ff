"""The normative text: every backend must give these bits (docs/numerics.md). numpy only.

One module per rule, spelled line by line like ``csrc/rules/<algo>.h``:

``scalars(hyper, t, carried, opmath)``
    float64 in, opmath out; moves ``carried`` one step on.
``update(s, g, p, state, variant)``
    Returns the new parameter; replaces the entries of the list ``state``.

A rule with sums has ``scalars(hyper, t, carried, opmath, sums, variant)`` and ``update(s, g, p,
state, variant, out)``, which fills the list ``out``: for each sum, what the elements add.
"""
