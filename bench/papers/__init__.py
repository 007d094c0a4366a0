"""The findings of the two papers, reproduced small: one command each, resumable, several seeds, JSON and a picture."""
