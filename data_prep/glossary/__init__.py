"""Terms and definitions of one page, and the references between them."""
