/** Options of `create -o` that formats have: name, type and help in the words of `qemu-img create -o help`. */

export interface CreateOptionSpec {
  name: string;
  type: 'str' | 'size' | 'num' | 'bool';
  help: string;
  /** The words that it may be; absent: any. */
  values?: readonly string[];
  /** What the line "Formatting ..." shows when it is not given; absent: nothing. */
  shown?: string;
  /** Not in the help: taken so that scripts go on working. */
  hidden?: true;
}

export const SIZE_OPTION: CreateOptionSpec = { name: 'size', type: 'size', help: 'Virtual disk size' };

export const BACKING_OPTIONS: readonly CreateOptionSpec[] = [
  { name: 'backing_file', type: 'str', help: 'File name of a base image' },
  { name: 'backing_fmt', type: 'str', help: 'Image format of the base image' },
];

/** @param values the modes of the format */
export function preallocationOption(...values: string[]): CreateOptionSpec {
  const help = `Preallocation mode (allowed values: ${values.join(', ')})`;
  return { name: 'preallocation', type: 'str', help, values };
}

/** Scripts say `encryption=off`. Encrypted images are neither made nor opened. */
export const ENCRYPTION_OPTION: CreateOptionSpec = {
  name: 'encryption',
  type: 'bool',
  help: 'Encrypt the image; only off is supported',
  hidden: true,
};
