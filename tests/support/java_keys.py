"""Known hashes of keys, as Java's clients compute them: for whoever chooses or surveys partitions.

From the tests of Apache Kafka's own clients, org.apache.kafka.common.utils.UtilsTest.testMurmur2.
"""

JAVA_MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}
