/**
 * The kernel's table of mounts, read from /proc/self/mountinfo (proc(5)). It names every mount without touching the file
 * systems, so it can be asked about a dead or busy mount; a stat(2) of the mountpoint could hang or fail.
 */
import fs from 'node:fs';
import path from 'node:path';

/** How the kernel and mount(8) name our mounts. */
export const MOUNT_TYPE = 'fuse.imagefs';

export interface MountEntry {
  id: number;
  parent: number;
  /** `0:45`: what stat(2) shows as st_dev and /proc/PID/maps as device. */
  device: string;
  mountpoint: string;
  options: string[];
  type: string;
  source: string;
  superOptions: string[];
}

/** Spaces, tabs, newlines and backslashes are written as three octal digits. */
function unescapeField(field: string): string {
  // The escapes stand for bytes, the rest is UTF-8 already: only ASCII characters are ever escaped.
  return field.replace(/\\([0-7]{3})/g, (_match, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}

function parseLine(line: string): MountEntry | undefined {
  const fields = line.split(' ');
  const separator = fields.indexOf('-', 6);
  const [id, parent, device, , mountpoint, options] = fields;
  const [type, source, superOptions] = separator < 0 ? [] : fields.slice(separator + 1);
  if (mountpoint === undefined || options === undefined || type === undefined || source === undefined) return undefined;
  return {
    id: Number(id),
    parent: Number(parent),
    device: device ?? '',
    mountpoint: unescapeField(mountpoint),
    options: options.split(','),
    type: unescapeField(type),
    source: unescapeField(source),
    superOptions: (superOptions ?? '').split(','),
  };
}

export class MountTable {
  readonly entries: MountEntry[];

  constructor(text: string) {
    this.entries = text.split('\n').flatMap((line) => {
      const entry = line === '' ? undefined : parseLine(line);
      return entry === undefined ? [] : [entry];
    });
  }

  /** The table of this process's mount namespace, now. */
  static read(): MountTable {
    return new MountTable(fs.readFileSync('/proc/self/mountinfo', 'utf8'));
  }

  /** The mount that a path lookup of exactly this mountpoint meets: the topmost of stacked ones. */
  find(mountpoint: string): MountEntry | undefined {
    const here = this.entries.filter((entry) => entry.mountpoint === mountpoint);
    return here.find((entry) => !here.some((other) => other.parent === entry.id && other !== entry)) ?? here.at(-1);
  }

  /** Mounts inside the tree of `mountpoint`: they keep it busy. */
  below(mountpoint: string): MountEntry[] {
    return this.entries.filter((entry) => isInside(entry.mountpoint, mountpoint) && entry.mountpoint !== mountpoint);
  }

  /** Every mount of ours. */
  ours(): MountEntry[] {
    return this.entries.filter((entry) => entry.type === MOUNT_TYPE);
  }
}

/** Is `file` the directory itself or somewhere below it? Both absolute and normalised. */
export function isInside(file: string, directory: string): boolean {
  return file === directory || file.startsWith(directory.endsWith('/') ? directory : `${directory}/`);
}

/** The user who mounted it: only they and root may unmount it. Undefined for what is no FUSE mount. */
export function ownerOf(entry: MountEntry): number | undefined {
  const word = entry.superOptions.find((option) => option.startsWith('user_id='));
  return word === undefined ? undefined : Number(word.slice('user_id='.length));
}

/**
 * The path under which the table lists a mountpoint that the user named. Symbolic links in its parent are resolved; the
 * last component is not looked up as long as the table knows it, because there a dead file system may lie.
 */
export function tablePath(mountpoint: string, table: MountTable): string {
  const absolute = path.resolve(mountpoint);
  if (table.find(absolute) !== undefined) return absolute;
  const inParent = path.join(realPathOr(path.dirname(absolute)), path.basename(absolute));
  if (table.find(inParent) !== undefined) return inParent;
  return realPathOr(inParent);
}

function realPathOr(file: string): string {
  try {
    return fs.realpathSync(file);
  } catch {
    // Missing, forbidden or a dead mount: the caller reports what it finds there under the name as it stands.
    return file;
  }
}
