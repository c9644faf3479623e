"""Publishes a moving picture and a tone over WHIP with FFmpeg's own muxer, in real time, until it is told to stop."""

import fractions
import signal
import sys
import time

import av
import numpy

url, token = sys.argv[1:3]
running = True


def stop(*_):
    global running
    running = False


signal.signal(signal.SIGTERM, stop)
output = av.open(url, "w", format="whip", options={"authorization": token})
video = output.add_stream("libx264", rate=25, options={"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline", "g": "25"})
video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
audio = output.add_stream("libopus", rate=48000, layout="stereo")
begin, picture, sound = time.monotonic(), 0, 0
while running:
    while sound * 960 / 48000 <= picture / 25:
        tone = numpy.sin(numpy.arange(sound * 960, sound * 960 + 960) * 2 * numpy.pi * 440 / 48000) * 8000
        frame = av.AudioFrame.from_ndarray(numpy.repeat(tone.astype("int16"), 2).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, sound * 960, fractions.Fraction(1, 48000)
        for packet in audio.encode(frame):
            output.mux(packet)
        sound += 1
    pixels = numpy.zeros((240, 320, 3), dtype="uint8")
    at = picture * 4 % 280
    pixels[100:140, at : at + 40] = (255, 160, 0)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame.pts, frame.time_base = picture, fractions.Fraction(1, 25)
    for packet in video.encode(frame):
        output.mux(packet)
    picture += 1
    if picture == 1:
        print("publishing", flush=True)
    time.sleep(max(0, begin + picture / 25 - time.monotonic()))
output.close()
print("closed", flush=True)
