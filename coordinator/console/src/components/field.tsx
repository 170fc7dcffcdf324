import { type ReactNode, useId } from "react";

interface Described {
  label: string;
  hint?: ReactNode;
  error?: string | undefined;
}

/** What the control of a field needs, so that readers of the screen hear hint and error. */
export interface ControlProps {
  id: string;
  "aria-describedby"?: string | undefined;
  "aria-invalid"?: true | undefined;
}

/** A label, a control, what it is for, and what is wrong with it. */
export function Field(props: Described & { children: (control: ControlProps) => ReactNode }) {
  const id = useId();
  const told = [props.hint && `${id}-hint`, props.error && `${id}-error`].filter(Boolean).join(" ");
  return (
    <div className="field">
      <label className="field-label" htmlFor={id}>
        {props.label}
      </label>
      {props.children({
        id,
        "aria-describedby": told || undefined,
        "aria-invalid": props.error ? true : undefined,
      })}
      {props.error && (
        <span className="field-error" id={`${id}-error`}>
          {props.error}
        </span>
      )}
      {props.hint && (
        <span className="field-hint" id={`${id}-hint`}>
          {props.hint}
        </span>
      )}
    </div>
  );
}

export function TextField(
  props: Described & {
    value: string;
    onChange: (value: string) => void;
    type?: "text" | "password" | "number";
    autoComplete?: string;
    placeholder?: string;
    required?: boolean;
    readOnly?: boolean;
    inputMode?: "decimal" | "numeric";
  },
) {
  return (
    <Field label={props.label} hint={props.hint} error={props.error}>
      {(control) => (
        <input
          {...control}
          type={props.type ?? "text"}
          step={props.type === "number" ? "any" : undefined}
          value={props.value}
          autoComplete={props.autoComplete}
          placeholder={props.placeholder}
          required={props.required}
          readOnly={props.readOnly}
          inputMode={props.inputMode}
          onChange={(event) => props.onChange(event.target.value)}
        />
      )}
    </Field>
  );
}

export interface Option {
  value: string;
  text: string;
}

export function SelectField(
  props: Described & { value: string; options: Option[]; onChange: (value: string) => void },
) {
  return (
    <Field label={props.label} hint={props.hint} error={props.error}>
      {(control) => (
        <select
          {...control}
          value={props.value}
          onChange={(event) => props.onChange(event.target.value)}
        >
          {props.options.map((each) => (
            <option key={each.value} value={each.value}>
              {each.text}
            </option>
          ))}
        </select>
      )}
    </Field>
  );
}

/** A choice whose every answer is explained where it can be read before choosing. */
export function ChoiceField(props: {
  label: string;
  value: string;
  options: (Option & { about: string; disabled?: boolean })[];
  onChange: (value: string) => void;
}) {
  const name = useId();
  return (
    <fieldset className="options">
      <legend>{props.label}</legend>
      {props.options.map((each) => (
        <label key={each.value} className="option">
          <input
            type="radio"
            name={name}
            value={each.value}
            checked={each.value === props.value}
            disabled={each.disabled}
            onChange={() => props.onChange(each.value)}
          />
          <b>{each.text}</b>
          <span>{each.about}</span>
        </label>
      ))}
    </fieldset>
  );
}

export function CheckField(props: {
  label: string;
  hint?: ReactNode;
  checked: boolean;
  onChange: (checked: boolean) => void;
}) {
  const id = useId();
  return (
    <div className="field">
      <label className="check">
        <input
          type="checkbox"
          checked={props.checked}
          aria-describedby={props.hint ? id : undefined}
          onChange={(event) => props.onChange(event.target.checked)}
        />
        {props.label}
      </label>
      {props.hint && (
        <span className="field-hint" id={id}>
          {props.hint}
        </span>
      )}
    </div>
  );
}
