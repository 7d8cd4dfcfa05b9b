return { name = "p
