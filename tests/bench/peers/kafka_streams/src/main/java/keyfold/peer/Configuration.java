package keyfold.peer;

import static org.apache.kafka.streams.StreamsConfig.consumerPrefix;
import static org.apache.kafka.streams.StreamsConfig.producerPrefix;

import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.LogAndContinueExceptionHandler;

/** The configuration of Streams: its defaults, and what differs from them with the reason. */
final class Configuration {

  private Configuration() {}

  static Properties of(Settings settings) {
    Properties chosen = new Properties();
    chosen.put(StreamsConfig.APPLICATION_ID_CONFIG, settings.group());
    chosen.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, settings.brokers());
    chosen.put(StreamsConfig.STATE_DIR_CONFIG, settings.stateDir().toString());
    chosen.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
    chosen.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, settings.guarantee());
    chosen.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, settings.commitMs());
    chosen.put(
        StreamsConfig.DESERIALIZATION_EXCEPTION_HANDLER_CLASS_CONFIG,
        LogAndContinueExceptionHandler.class);
    chosen.put(consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
    chosen.put(producerPrefix(ProducerConfig.ACKS_CONFIG), "all");
    chosen.put(producerPrefix(ProducerConfig.ENABLE_IDEMPOTENCE_CONFIG), true);
    if (settings.buffered()) {
      tune(chosen);
    }
    return chosen;
  }

  private static void tune(Properties chosen) {
    // The states of a commit interval fit, so that none is written more than once in it.
    chosen.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 256L << 20);
    // A state is half a kilobyte: 16 KB would wake the sender for every thirty of them.
    chosen.put(producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 128 << 10);
    // A punctuation is looked at when a poll returns: no later than the buffer asks for.
    chosen.put(StreamsConfig.POLL_MS_CONFIG, 10L);
  }
}
