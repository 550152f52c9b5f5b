/** A control group with a limit of memory, of version 1 or 2 of the kernel's interface, whichever is there. */
import * as fs from 'node:fs';
import * as path from 'node:path';

const V1 = '/sys/fs/cgroup/memory';
const V2 = '/sys/fs/cgroup';

export class MemoryCap {
  private constructor(
    private readonly directory: string,
    private readonly version: 1 | 2,
  ) {}

  /** @returns the reason why there can be none here */
  static create(name: string, bytes: number): MemoryCap | string {
    const version = fs.existsSync(path.join(V1, 'memory.limit_in_bytes')) ? 1 : 2;
    const directory = path.join(version === 1 ? V1 : V2, `${name}-${process.pid}`);
    try {
      fs.mkdirSync(directory);
      fs.writeFileSync(path.join(directory, version === 1 ? 'memory.limit_in_bytes' : 'memory.max'), String(bytes));
      return new MemoryCap(directory, version);
    } catch (error) {
      fs.rmSync(directory, { recursive: true, force: true });
      return `no control group with a memory limit can be made here: ${String(error)}`;
    }
  }

  /** A command line that runs this one inside, with everything that it starts. */
  inside(program: string, ...args: string[]): [string, string[]] {
    const enter = 'echo $$ > "$1" && shift && exec "$@"';
    return ['sh', ['-c', enter, 'sh', path.join(this.directory, 'cgroup.procs'), program, ...args]];
  }

  /** The most that was ever in use, bytes: page cache and kernel memory of its processes, too. Undefined: nobody knows. */
  get peak(): number | undefined {
    const text = this.read(this.version === 1 ? 'memory.max_usage_in_bytes' : 'memory.peak');
    return text === '' ? undefined : Number(text);
  }

  /** How often an allocation met the limit. */
  get atLimit(): number {
    if (this.version === 1) return Number(this.read('memory.failcnt'));
    return Number(/^max (\d+)/m.exec(this.read('memory.events'))?.[1] ?? 0);
  }

  get killed(): number {
    const text = this.read(this.version === 1 ? 'memory.oom_control' : 'memory.events');
    return Number(/^oom_kill (\d+)/m.exec(text)?.[1] ?? 0);
  }

  private read(name: string): string {
    try {
      return fs.readFileSync(path.join(this.directory, name), 'utf8').trim();
    } catch {
      return ''; // older kernels lack some
    }
  }

  /** Once no process is left in it. */
  remove(): void {
    fs.rmdirSync(this.directory);
  }
}

/** PF_MEMALLOC_NOIO, which PR_SET_IO_FLUSHER sets, in field 9 of /proc/PID/stat. */
const PF_MEMALLOC_NOIO = 0x80000;

export function isIoFlusher(pid: number): boolean {
  const stat = fs.readFileSync(`/proc/${pid}/stat`, 'latin1');
  const flags = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[6]);
  return Math.floor(flags / PF_MEMALLOC_NOIO) % 2 === 1;
}

/** The most memory that a process ever had, bytes, and what it has now. */
export function memoryOf(pid: number): { peak: number; now: number } {
  const text = fs.readFileSync(`/proc/${pid}/status`, 'utf8');
  const kilobytes = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(text)?.[1] ?? 0) * 1024;
  return { peak: kilobytes('VmHWM'), now: kilobytes('VmRSS') };
}
