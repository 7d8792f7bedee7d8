"""Plain PyTorch for what the library does, written from the published architectures, with the library's weights."""
