"""The only room that touches sizes, ranges, strides, lengths and rates: from decoded files to tokenizers, and back.

`image`, `audio.resample_numpy` and `audio.channels` are free of torch, for decoding workers; the rest works on tensors.
"""
