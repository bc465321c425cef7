"""The only code that walks containers: what lies where in a file. Decodes no pixel and knows no Pillow."""
