"""The HTTP service. Its door is ``app.create_app``; routes stand beside the bodies they take."""
