"""Mathematics: how alike things are, and how a user's clicks move vectors. No input or output, no settings.

Axes, in this order wherever they occur:
S sessions · J remembered queries · C clicked objects · Q parts of a query · I objects · N parts of all of
them together · P parts of one object · D dimensions.

Parts of many objects stand in one flat array [N, D], those of object i in the rows from ``starts[i]`` to
``starts[i + 1]``; nothing is ever padded. All but ``improvement.torch_based_adjuster`` needs numpy alone.
"""
