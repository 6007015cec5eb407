"""What a rank's process is told by the logger of the package."""

import logging


class Told(logging.Handler):
    """Listens from the moment it is made."""

    def __init__(self):
        super().__init__()
        self.texts = []
        logging.getLogger("gradsieve").addHandler(self)

    def emit(self, record):
        self.texts.append(record.getMessage())

    def take(self):
        texts, self.texts = self.texts, []
        return texts
