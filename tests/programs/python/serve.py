import bottle


@bottle.get("/")
def root():
    return "served by bottle %s\n" % bottle.__version__


bottle.run(host="127.0.0.1", port=8081, quiet=True)
