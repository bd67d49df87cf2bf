"""Serve a rewired model over HTTP, in a process that knows neither how it was trained nor with what.

    swcompile transform examples/resnet20.py --out out/resnet20
    python examples/serve.py out/resnet20
    curl -d '[[[[0, ...]]]]' localhost:8000

Needs what swcompile itself needs, and the file that builds the original.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from resnet20 import build_model
from torch import nn

import swnet


def answer(model: nn.Module, body: bytes) -> bytes:
    """Return the classes of images (N, 3, H, W), as JSON for JSON."""
    images = torch.tensor(json.loads(body), dtype=torch.float32)
    if images.dim() != 4:
        raise ValueError(f"images are of four dimensions, (N, 3, H, W), and these of {images.dim()}")
    with torch.inference_mode():
        return json.dumps(model(images).argmax(1).tolist()).encode()


def server(folder: str | Path, port: int = 8000) -> ThreadingHTTPServer:
    model = swnet.load(folder, build_model()).eval()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                status, said = 200, answer(model, self.rfile.read(int(self.headers["Content-Length"])))
            except (ValueError, TypeError, RuntimeError) as error:  # no JSON, no numbers, or not the channels that the model takes
                status, said = 400, str(error).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(said)

    return ThreadingHTTPServer(("localhost", port), Handler)


if __name__ == "__main__":
    server(sys.argv[1]).serve_forever()
