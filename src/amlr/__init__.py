"""amlr: a deployment engine for the AMLR multimodal named-entity tagger.

The package root imports nothing heavy: `import amlr.runtime` must stay lean. It only keeps
libraries from reporting home, which must happen before they are imported.
"""

from amlr.telemetry import switch_off

__version__ = "0.2.0"

switch_off()
