"""Speed and memory: arms, floors, random-weight models, and the table."""
