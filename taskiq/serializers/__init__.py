"""Serializers for messages and results."""

from taskiq.serializers.cbor_serializer import CBORSerializer
from taskiq.serializers.json_serializer import JSONSerializer
from taskiq.serializers.msgpack_serializer import MSGPackSerializer
from taskiq.serializers.orjson_serializer import ORJSONSerializer
from taskiq.serializers.pickle import PickleSerializer

__all__ = [
    "CBORSerializer",
    "JSONSerializer",
    "MSGPackSerializer",
    "ORJSONSerializer",
    "PickleSerializer",
]
