/** How much memory this process could still take: the machine's, and its control group's. */
import { readFileSync } from 'node:fs';
import { freemem } from 'node:os';
import { dirname, join } from 'node:path';

/** Bytes; what the kernel can reclaim at once (page cache) counts as free. */
export function freeMemory(): number {
  return Math.min(machineMemory(), groupMemory());
}

/** `MemAvailable` of /proc/meminfo (proc(5)), or the free pages where there is no such file. */
function machineMemory(): number {
  const line = /^MemAvailable:\s+(\d+) kB$/m.exec(readText('/proc/meminfo') ?? '');
  return line ? Number(line[1]) * 1024 : freemem();
}

/**
 * The least that any control group above this process still allows, or Infinity. Version 2
 * (memory.max) and version 1 (memory.limit_in_bytes) of the kernel's Documentation/admin-guide.
 */
function groupMemory(): number {
  let least = Infinity;
  for (const line of (readText('/proc/self/cgroup') ?? '').split('\n')) {
    const [, controllers, path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (path === undefined) continue;
    if (controllers === '') {
      least = Math.min(least, leftIn('/sys/fs/cgroup', path, 'memory.max', 'memory.current'));
    } else if (controllers.split(',').includes('memory')) {
      const [limit, usage] = ['memory.limit_in_bytes', 'memory.usage_in_bytes'];
      least = Math.min(least, leftIn('/sys/fs/cgroup/memory', path, limit, usage));
    }
  }
  return least;
}

/** Follows a group up to the root; in a container the path may not be visible, the root is. */
function leftIn(root: string, path: string, limitFile: string, usageFile: string): number {
  let least = Infinity;
  for (let group = path; ; group = dirname(group)) {
    const folder = join(root, group);
    const limit = Number.parseInt(readText(join(folder, limitFile)) ?? '', 10);
    const usage = Number.parseInt(readText(join(folder, usageFile)) ?? '', 10);
    if (limit >= 0 && usage >= 0) {
      const reclaimable = /^(?:total_)?inactive_file (\d+)$/m.exec(
        readText(join(folder, 'memory.stat')) ?? '',
      );
      least = Math.min(least, Math.max(0, limit - usage + Number(reclaimable?.[1] ?? 0)));
    }
    if (group === '/' || group === '.') return least;
  }
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}
