package keyfold.peer;

import java.nio.file.Path;
import java.util.List;

/** What the benchmark's driver asks for, read from the environment; a missing setting is named. */
record Settings(
    String brokers,
    String input, // topic of the events
    String output, // topic of the predictions, with as many partitions
    String group, // application.id
    Path model, // the step graph
    Path manifest, // which inputs and outputs of the graph are the state
    List<String> features, // members of the event, in the order of the columns of x
    Path stateDir, // an empty folder for RocksDB
    boolean buffered, // else one session run per event
    String guarantee, // Streams' processing.guarantee
    int commitMs, // Streams' commit.interval.ms
    int warmupS) { // processor time of a trial before; 0: none

  /**
   * Streams' own default is 30 s, with which a benchmark of 20 s would end before it had saved
   * anything; with a second the states of each second are saved within the measured time.
   */
  private static final String COMMIT_MS = "1000";

  static Settings fromEnvironment() {
    String variant = needed("PEER_VARIANT");
    if (!variant.equals("per_event") && !variant.equals("buffered")) {
      throw new IllegalArgumentException(
          "PEER_VARIANT: expected per_event or buffered, got " + variant);
    }
    return new Settings(
        needed("PEER_BROKERS"),
        needed("PEER_INPUT"),
        needed("PEER_OUTPUT"),
        needed("PEER_GROUP"),
        Path.of(needed("PEER_MODEL")),
        Path.of(needed("PEER_MANIFEST")),
        List.of(needed("PEER_FEATURES").split(",")),
        Path.of(needed("PEER_STATE_DIR")),
        variant.equals("buffered"),
        optional("PEER_GUARANTEE", "at_least_once"),
        Integer.parseInt(optional("PEER_COMMIT_MS", COMMIT_MS)),
        Integer.parseInt(optional("PEER_WARMUP_S", "0")));
  }

  /** Returns the settings of a run before this one, with topics, offsets and stores of its own. */
  Settings forWarmup() {
    return new Settings(
        brokers,
        input,
        output + "-warmup",
        group + "-warmup",
        model,
        manifest,
        features,
        stateDir.resolve("warmup"),
        buffered,
        guarantee,
        commitMs,
        0);
  }

  private static String needed(String name) {
    String value = System.getenv(name);
    if (value == null || value.isEmpty()) {
      throw new IllegalArgumentException(name + ": expected a value in the environment, got none");
    }
    return value;
  }

  private static String optional(String name, String otherwise) {
    String value = System.getenv(name);
    return value == null || value.isEmpty() ? otherwise : value;
  }
}
