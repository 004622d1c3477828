"""The parser of a command whose words change a run file. Imports nothing slow, so that --help answers at once."""

from data_prep.common.parser import Parser


class RunParser(Parser):
    """Parser that answers an unknown flag with the key of the run file that may be meant."""

    def about_flag(self, word: str) -> str:
        from trainer.config.unknown_keys import about_flag

        return about_flag(word, self.flags())
