"""amlr: a deployment engine for the AMLR multimodal named-entity tagger.

The package root stays empty on purpose: `import amlr.runtime` must not pull in anything heavy.
"""

__version__ = "0.1.0"
