"""Publishes GStreamer's test picture and tone over WHIP with webrtcbin: one offer by POST, the end by DELETE.

Older releases of it make themselves an RSA certificate (docs/decisions/0002-rsa-in-dtls.md).
"""

import signal
import ssl
import sys
import urllib.request

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstSdp", "1.0")
gi.require_version("GstWebRTC", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC

url, token, authority = sys.argv[1:4]
Gst.init(None)
PIPELINE = """
webrtcbin name=web bundle-policy=max-bundle
videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=25/1 ! vp8enc deadline=1 keyframe-max-dist=50
  ! rtpvp8pay pt=96 picture-id-mode=2 ! application/x-rtp,media=video,encoding-name=VP8,payload=96 ! web.
audiotestsrc is-live=true wave=sine ! audioconvert ! audioresample ! opusenc
  ! rtpopuspay pt=111 ! application/x-rtp,media=audio,encoding-name=OPUS,payload=111 ! web.
"""
pipeline = Gst.parse_launch(PIPELINE)
web = pipeline.get_by_name("web")
loop = GLib.MainLoop()
tls = ssl.create_default_context(cafile=authority)
session = None


def ask(method, where, body=None):
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/sdp"}
    return urllib.request.urlopen(urllib.request.Request(where, data=body, headers=headers, method=method), context=tls)


def gathered(*_):
    """The offer has all its candidates: send it."""
    global session
    if web.get_property("ice-gathering-state") != GstWebRTC.WebRTCICEGatheringState.COMPLETE or session:
        return
    offer = web.get_property("local-description").sdp.as_text()
    with ask("POST", url, offer.encode()) as response:
        session = urllib.request.urljoin(url, response.headers["Location"])
        print(response.status, response.headers["ETag"], len(response.headers.get_all("Link")), flush=True)
        _, answer = GstSdp.SDPMessage.new_from_text(response.read().decode())
    answer = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, answer)
    web.emit("set-remote-description", answer, Gst.Promise.new())


def offered(promise, *_):
    reply = promise.get_reply()
    # Borrowed from the reply, which has to outlive it.
    offer = reply.get_value("offer")
    web.emit("set-local-description", offer, Gst.Promise.new())


def stop(*_):
    if session:
        print("ended", ask("DELETE", session).status, flush=True)
    loop.quit()


web.connect("on-negotiation-needed", lambda *_: web.emit("create-offer", None, Gst.Promise.new_with_change_func(offered)))
web.connect("notify::ice-gathering-state", lambda *_: GLib.idle_add(gathered))
GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGTERM, stop)
pipeline.set_state(Gst.State.PLAYING)
loop.run()
pipeline.set_state(Gst.State.NULL)
