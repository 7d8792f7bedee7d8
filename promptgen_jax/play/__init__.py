"""A page to play with prompts: `studio` draws, `page` is what people see, `space` writes a folder for a server."""
