/** `imagefs list`: the mounts of this machine and who serves them. */
import { isDead } from '../../daemon/checks';
import { type MountEntry, MountTable } from '../../daemon/mountinfo';
import { type DaemonProcess, daemonOf, findDaemons } from '../../daemon/processes';
import { outputFormat, parseWords } from '../args';
import { type Command, UsageError } from '../command';
import { print, printLine, qemuJson } from '../output';

const HELP = `Usage: imagefs list [--output human|json]

Shows every imagefs mount: where, of which images, writable or not, through which session, and
the process that serves it. A mount whose process has died is shown as dead: imagefs umount
detaches it.

Exit code: 0 also when there is none, 2 wrong usage.

Example: imagefs list --output json`;

interface ListedMount {
  mountpoint: string;
  images: string[];
  'read-only': boolean;
  session: 'kernel' | 'native' | null;
  pid: number | null;
  state: 'live' | 'dead' | 'unknown';
}

function run(args: string[]): number {
  const output = parse(args);
  const daemons = findDaemons();
  const mounts = MountTable.read()
    .ours()
    .map((entry) => describe(entry, daemonOf(entry, daemons)));
  if (output === 'json') printLine(qemuJson(mounts));
  else print(table(mounts));
  return 0;
}

function parse(args: string[]): 'human' | 'json' {
  const { values, positionals } = parseWords(args, { output: { type: 'string' } });
  if (positionals.length > 0) throw new UsageError(`Unexpected argument "${positionals[0]}"`);
  return outputFormat(values.output);
}

function describe(entry: MountEntry, daemon: DaemonProcess | undefined): ListedMount {
  const { mountpoint, source } = entry;
  const readOnly = entry.options.includes('ro') || entry.superOptions.includes('ro');
  if (daemon !== undefined) {
    const { named, session, pid } = daemon;
    return { mountpoint, images: named, 'read-only': readOnly, session, pid, state: 'live' };
  }
  // Nobody serves it as far as this user can see (/proc may hide the processes of others).
  const state = isDead(mountpoint) ? 'dead' : 'unknown';
  return {
    mountpoint,
    images: [source.replace(/^imagefs:/, '')],
    'read-only': readOnly,
    session: null,
    pid: null,
    state,
  };
}

function table(mounts: ListedMount[]): string {
  const rows = mounts.map((mount) => [
    mount.mountpoint,
    mount['read-only'] ? 'ro' : 'rw',
    mount.session ?? '-',
    mount.pid === null ? '-' : String(mount.pid),
    mount.state,
    mount.images.join(', '),
  ]);
  if (rows.length === 0) return '';
  const all = [['MOUNTPOINT', 'MODE', 'SESSION', 'PID', 'STATE', 'IMAGES'], ...rows];
  const widths = all[0]?.map((_, column) => Math.max(...all.map((row) => (row[column] ?? '').length))) ?? [];
  return all
    .map(
      (row) =>
        `${row
          .map((cell, column) => cell.padEnd(widths[column] ?? 0))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('');
}

export const command: Command = {
  name: 'list',
  summary: 'Show all mounts',
  help: HELP,
  run,
};
