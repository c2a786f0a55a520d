"""a policy scores and samples decisions"""
