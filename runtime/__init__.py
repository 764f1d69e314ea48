"""The lean runtime: load a bundle and tag posts, without PyTorch."""

from amlr.runtime.engine import Engine as Engine
from amlr.runtime.results import Alternative as Alternative
from amlr.runtime.results import Entity as Entity
from amlr.runtime.results import Post as Post
from amlr.runtime.results import Problem as Problem
from amlr.runtime.results import Raw as Raw
from amlr.runtime.results import Result as Result
