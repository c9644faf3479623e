"""A program as the Python SDK's documentation shows it: joins, publishes sound and picture, hears and sees the others, answers
calls and text. What happens is printed, one line each, until SIGTERM."""

import asyncio
import signal
import sys

import numpy
from livekit import api, rtc

url, room_name, identity, key, secret = sys.argv[1:6]


def say(*words):
    print(*words, flush=True)


async def tone(source):
    frame = rtc.AudioFrame.create(48000, 1, 480)
    samples = numpy.frombuffer(frame.data, dtype=numpy.int16)
    at = 0
    while True:
        numpy.copyto(samples, (numpy.sin((at + numpy.arange(480)) * 2 * numpy.pi * 440 / 48000) * 9000).astype(numpy.int16))
        await source.capture_frame(frame)
        at += 480


async def picture(source):
    shade = 0
    while True:
        shade = (shade + 4) % 256
        source.capture_frame(rtc.VideoFrame(320, 240, rtc.VideoBufferType.RGBA, bytes([shade, 80, 160, 255]) * (320 * 240)))
        await asyncio.sleep(1 / 20)


async def watch(track, who):
    stream = rtc.VideoStream(track) if track.kind == rtc.TrackKind.KIND_VIDEO else rtc.AudioStream(track)
    kind = "video" if track.kind == rtc.TrackKind.KIND_VIDEO else "audio"
    count = 0
    async for _ in stream:
        count += 1
        if count == 20:
            say("received", kind, who)


async def main():
    grants = api.VideoGrants(room_join=True, room=room_name, can_update_own_metadata=True)
    token = api.AccessToken(key, secret).with_identity(identity).with_grants(grants).to_jwt()
    room, tasks = rtc.Room(), []

    @room.on("track_subscribed")
    def subscribed(track, publication, participant):
        tasks.append(asyncio.create_task(watch(track, participant.identity)))

    @room.on("data_received")
    def data(packet):
        say("data", packet.data.decode())

    room.register_text_stream_handler("chat", lambda reader, who: tasks.append(asyncio.create_task(read(reader, who))))

    async def read(reader, who):
        say("text", who, await reader.read_all())

    await room.connect(url, token)
    say("connected", room.name)

    @room.local_participant.register_rpc_method("greet")
    async def greet(call):
        return f"hello {call.payload} from {identity}"

    sound, camera = rtc.AudioSource(48000, 1), rtc.VideoSource(320, 240)
    for track, source in [
        (rtc.LocalAudioTrack.create_audio_track("tone", sound), rtc.TrackSource.SOURCE_MICROPHONE),
        (rtc.LocalVideoTrack.create_video_track("picture", camera), rtc.TrackSource.SOURCE_CAMERA),
    ]:
        await room.local_participant.publish_track(track, rtc.TrackPublishOptions(source=source))
    say("published")
    tasks += [asyncio.create_task(tone(sound)), asyncio.create_task(picture(camera))]
    await room.local_participant.set_attributes({"kind": "python"})
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    await end.wait()
    async with api.LiveKitAPI(url.replace("ws", "http", 1), key, secret) as service:
        people = await service.room.list_participants(api.ListParticipantsRequest(room=room_name))
        say("people", *sorted(p.identity for p in people.participants))
    await room.disconnect()
    say("left")


asyncio.run(main())
