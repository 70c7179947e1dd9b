"""The command ``meet``: parse, call, print. The only package that prints."""

from meetlm.config.process import prepare

prepare()  # before anything imports torch

from meetlm.cli import (  # noqa: E402, F401  each module adds its commands to ``main``
    data,
    demo,
    dial,
    doctor,
    evaluate,
    export,
    generate,
    paper,
    plan,
    recipes,
    reward,
    rollout,
    score,
    serve,
    sweep,
    temperature,
    train,
    verify_resume,
)
from meetlm.cli.main import main  # noqa: E402

__all__ = ["main"]
