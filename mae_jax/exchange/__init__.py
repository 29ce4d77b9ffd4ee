"""Models as files that other runtimes read: ONNX and StableHLO.

`computation` says what such a file computes, `artefacts` writes it, and `check` runs it in a
process without this package.
"""
