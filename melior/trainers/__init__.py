"""one loop, short objectives"""
