/** What a rival keeps for one number of streams and one choice of settings: a context, a server. */
import type { Contender, Settings, Streams, Workload } from './contender.js';

export interface Parts<T> {
  make(streams: number, settings: Settings): Promise<T>;
  run(made: T, workload: Workload): Promise<Streams>;
  dispose(made: T): Promise<void>;
}

/** Makes it before the first run that needs it, and anew whenever streams or settings change. */
export function keepPrepared<T>(
  description: string,
  { make, run, dispose }: Parts<T>,
): Contender & Required<Pick<Contender, 'prepare'>> {
  let made: { key: string; what: T } | undefined;
  const close = async () => {
    if (!made) return;
    const { what } = made;
    made = undefined;
    await dispose(what);
  };
  const prepare = async (streams: number, settings: Settings) => {
    const key = JSON.stringify([streams, settings]);
    if (made?.key === key) return;
    await close();
    made = { key, what: await make(streams, settings) };
  };
  return {
    description,
    prepare,
    async run(workload, settings) {
      await prepare(workload.prompts.length, settings);
      return await run(made!.what, workload);
    },
    close,
  };
}
