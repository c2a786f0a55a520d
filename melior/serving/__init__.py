"""HTTP: answer, record, learn; the OpenAI dialect, and melior's own words for feedback and decisions"""
