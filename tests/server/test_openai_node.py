"""The `openai` package of Node, as people use it, against a server on a loopback port."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.server.asking import listening
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent / "node"
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.skipif(
    not (HERE / "node_modules" / "openai").exists(),
    reason="not installed: npm install --no-package-lock --prefix tests/server/node",
)
async def test_a_conversation_whole_and_streamed() -> None:
    async with listening(FakeEngine()) as url:
        assert NODE is not None
        process = await asyncio.create_subprocess_exec(
            *(NODE, str(HERE / "conversation.mjs"), f"{url}/v1"), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    assert json.loads(out) == {
        "first": "user: hello",
        "second": "user: helloassistant: user: hellouser: again",
        "usage": len("user: hello" * 2 + "assistant: user: again") * 2 + 5 + 1,  # roles and BOS; the end
        "finish": "stop",
        "helper": "user: llama 🦙",
        "completion": "grass",
        "models": ["fake"],
        "error": ["BadRequestError", 400, "temperature"],
        "missing": ["NotFoundError", "model_not_found"],
    }
