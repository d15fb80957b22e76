"""The champion as a web page: service, page, monitor."""
