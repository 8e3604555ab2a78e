"""The demonstration: what is shown in it, and the story that runs without a browser.

subjects   the two collections, and the searches that tell something
shop       the catalogue of a small shop, shop.csv
story      the story in the terminal, over HTTP
replayed   what a replay of a real log gave, replayed.json (.ci/replayed.py writes it)
"""
