"""Guided capture without a desktop: a web page that this machine alone can open, and the same words in the terminal."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np

from calibration.board import Board
from calibration.camera import CalibrationError
from calibration.guide import Guide
from calibration.views import View
from harmowam.calibration_rig import take
from runtime.cameras.sources import CameraSource

PAGE = """<!doctype html><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>Calibration</title><style>body{margin:0;background:#111;color:#eee;font:20px system-ui;text-align:center}
img{max-width:100vw;max-height:85vh}p{margin:.4em}</style>
<img id=i alt="camera"><p id=t>waiting for the camera</p>
<script>async function step(){try{const s=await(await fetch('status')).json();
t.textContent=s.kept+' of '+s.wanted+' kept. '+s.said+'. '+s.next;
i.src='picture?'+Date.now();if(s.done){t.textContent='Done: the calibration is being computed.';return}}
catch(e){t.textContent='The capture has ended.';return}
setTimeout(step,250)}step()</script>"""

LOCAL = ("127.0.0.1", "localhost", "[::1]")


class CapturePage:
    """Serves the newest picture and status on 127.0.0.1 until `close`; from afar through ssh -L with the same port on
    both sides. Whoever asks by another name gets 421: a foreign page whose own name was made to point to this machine
    (DNS rebinding) would otherwise read the camera.

    `port` 0: any free one. Raises CalibrationError when the port is taken."""

    def __init__(self, port: int):
        self.picture, self.status = b"", b"{}"
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if [host.lower() for host in self.headers.get_all("Host", [])] not in page._names:
                    self._answer(421, "text/plain", f"ask for {page.address}\n".encode())
                    return
                path = self.path.split("?")[0]
                found = {
                    "/": ("text/html", PAGE.encode()),
                    "/picture": ("image/jpeg", page.picture),
                    "/status": ("application/json", page.status),
                }
                kind, body = found.get(path, ("", b""))
                self._answer(200 if kind else 404, kind or "text/plain", body)

            def _answer(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as e:
            raise CalibrationError(
                f"port {port} is not free for the capture's page ({e.strerror}): give another --page, or 0 for none."
            ) from e
        port = self._server.server_port
        self.address = f"http://127.0.0.1:{port}/"
        self._names = [[name + end] for name in LOCAL for end in ((f":{port}", "") if port == 80 else (f":{port}",))]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def show(self, image: np.ndarray, guide: Guide, said: str) -> None:
        picture = guide.picture(image, said)
        if picture.shape[1] > 960:
            picture = cv2.resize(
                picture, (960, round(960 * picture.shape[0] / picture.shape[1])), interpolation=cv2.INTER_AREA
            )
        self.picture = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
        self.status = json.dumps(
            {
                "kept": len(guide.views),
                "wanted": guide.wanted,
                "said": said,
                "next": guide.next_step(),
                "done": guide.done,
            }
        ).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def capture(
    source: CameraSource, board: Board, wanted: int, port: int, say: Callable[[str], None]
) -> tuple[list[View], tuple[int, int], dict[str, np.ndarray]]:
    """Collect `wanted` good views while a page at `port` (0: none) shows them; Ctrl-C ends earlier with those that are
    there. Returns the views, the picture's width and height (px), and a few pictures uint8[H,W] by view. Raises
    CalibrationError when the port is taken, the camera falls silent or changes its resolution."""
    guide = Guide(board, wanted)
    page = CapturePage(port) if port else None
    if page is not None:
        say(f"open {page.address}")
    size, last = (0, 0), ""
    try:
        while not guide.done:
            image = take(source, 1)[0]
            if size not in ((0, 0), (image.shape[1], image.shape[0])):
                raise CalibrationError(
                    f"the camera changed from {size[0]}x{size[1]} to {image.shape[1]}x{image.shape[0]} during the "
                    "capture: "
                    "keep other programs from it, then repeat."
                )
            size = (image.shape[1], image.shape[0])
            said = guide.add(image)
            if page is not None:
                page.show(image, guide, said)
            line = f"{len(guide.views)}/{wanted}  {said}; {guide.next_step()}"
            if line != last:
                say(line)
                last = line
    except KeyboardInterrupt:
        say("capture ended by hand")
    finally:
        if page is not None:
            page.close()
    return guide.views, size, guide.pictures
