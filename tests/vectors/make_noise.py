"""Writes what another implementation of Noise says: `pip install noiseprotocol==0.3.1 && python3 make_noise.py > noise.txt`"""
from noise.connection import NoiseConnection, Keypair

SECRET, PROLOGUE = bytes(range(32)), b"what both know beforehand"
EPHEMERALS = {"initiator": bytes(range(64, 96)), "responder": bytes(range(128, 160))}


def end(role):
    noise = NoiseConnection.from_name(b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s")
    noise.set_psks(SECRET)
    noise.set_prologue(PROLOGUE)
    noise.set_as_initiator() if role == "initiator" else noise.set_as_responder()
    noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, EPHEMERALS[role])
    noise.start_handshake()
    return noise


def show(name, data):
    print(f"{name} {data.hex()}")


ends = {role: end(role) for role in EPHEMERALS}
initiator, responder = ends["initiator"], ends["responder"]
show("secret", SECRET)
show("prologue", PROLOGUE)
for role, ephemeral in EPHEMERALS.items():
    show(f"{role}-ephemeral", ephemeral)
first = initiator.write_message()
responder.read_message(first)
second = responder.write_message()
initiator.read_message(second)
show("first", bytes(first))
show("second", bytes(second))
for turn in range(4):
    if turn == 2:
        for noise in ends.values():
            noise.rekey_outbound_cipher()
    for role, noise in ends.items():
        show(f"{role}-{turn}", noise.encrypt(f"message {turn} of the {role}".encode()))
