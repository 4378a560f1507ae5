/** Structured logs: one JSON object a line. */

export const LOG_LEVELS = ['error', 'warn', 'info', 'debug'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export interface Log {
  enabled(level: LogLevel): boolean;
  write(level: LogLevel, event: string, fields?: Record<string, unknown>): void;
}

/** Writes events of `level` and graver to stderr, or to where the test wants them. */
export function createLog(
  level: LogLevel,
  sink: (line: string) => void = (line) => process.stderr.write(line),
): Log {
  const limit = LOG_LEVELS.indexOf(level);
  const enabled = (of: LogLevel): boolean => LOG_LEVELS.indexOf(of) <= limit;
  return {
    enabled,
    write(of, event, fields = {}) {
      if (!enabled(of)) return;
      sink(`${JSON.stringify({ time: new Date().toISOString(), level: of, event, ...fields })}\n`);
    },
  };
}
