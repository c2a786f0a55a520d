"""files and rows become examples"""
