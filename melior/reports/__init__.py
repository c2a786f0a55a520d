"""what a run looks like: a page, and curves in the terminal, made from the files of its folder alone"""
