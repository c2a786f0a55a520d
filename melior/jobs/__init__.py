"""training that somebody asked for: a worker takes jobs from the store and has them done by supervised processes"""
