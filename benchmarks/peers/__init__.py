"""The same operations as others compute them. Each peer is told by whose code it calls or follows."""
