package keyfold.peer;

import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AdminClientConfig;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.streams.KafkaStreams;

/**
 * Serves the same input for trial, to other topics, before what is measured: a Java service runs
 * for weeks, and its first seconds, in which the compiler takes as much of the machine as the
 * events do, say nothing of it. Ends when the program has had the given processor time (a machine
 * that is shared gives it later), when the input was read, or after a minute.
 */
final class Warmup {

  private static final Duration IDLE = Duration.ofSeconds(3); // then the input was read
  private static final Duration AT_MOST = Duration.ofSeconds(60);
  private static final long LOOK_MS = 200;

  private Warmup() {}

  static void run(Settings settings) throws Exception {
    Settings trial = settings.forWarmup();
    makeOutput(trial);
    try (KafkaStreams streams = Peer.streams(trial)) {
      streams.start();
      long begun = System.nanoTime();
      long moved = begun;
      double seen = 0;
      while (processorTime().toSeconds() < settings.warmupS()
          && since(begun).compareTo(AT_MOST) < 0
          && (seen == 0 || since(moved).compareTo(IDLE) < 0)) {
        Thread.sleep(LOOK_MS);
        double processed = processed(streams);
        if (processed > seen) {
          seen = processed;
          moved = System.nanoTime();
        }
      }
      streams.close(Duration.ofSeconds(20));
    }
  }

  private static Duration since(long nanos) {
    return Duration.ofNanos(System.nanoTime() - nanos);
  }

  private static Duration processorTime() {
    return ProcessHandle.current().info().totalCpuDuration().orElse(AT_MOST);
  }

  private static double processed(KafkaStreams streams) {
    return streams.metrics().values().stream()
        .filter(metric -> metric.metricName().name().equals("process-total"))
        .filter(metric -> metric.metricName().group().equals("stream-thread-metrics"))
        .mapToDouble(metric -> (Double) metric.metricValue())
        .sum();
  }

  private static void makeOutput(Settings trial) throws Exception {
    Map<String, Object> where = Map.of(AdminClientConfig.BOOTSTRAP_SERVERS_CONFIG, trial.brokers());
    try (Admin admin = Admin.create(where)) {
      int partitions =
          admin
              .describeTopics(List.of(trial.input()))
              .allTopicNames()
              .get()
              .get(trial.input())
              .partitions()
              .size();
      admin
          .createTopics(
              List.of(new NewTopic(trial.output(), Optional.of(partitions), Optional.empty())))
          .all()
          .get();
    }
  }
}
